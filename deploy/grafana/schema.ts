// What a dashboard here must be, after the types that Grafana publishes: @grafana/schema for the dashboard, the foundation SDK
// for Prometheus' queries and each kind of panel. scripts/check-deploy has TypeScript's compiler hold every dashboard
// against it, as a literal, so that what the types do not know is an error.
import type { AnnotationQuery, Dashboard, FieldConfig, Panel, RowPanel, VariableModel } from '@grafana/schema';
import type * as heatmap from '@grafana/grafana-foundation-sdk/heatmap';
import type { Dataquery } from '@grafana/grafana-foundation-sdk/prometheus';
import type * as stat from '@grafana/grafana-foundation-sdk/stat';
import type * as timeseries from '@grafana/grafana-foundation-sdk/timeseries';

// JSON has an enumeration's values where TypeScript wants its members.
type Plain<T> = T extends string ? `${T}` : T extends (infer U)[] ? Plain<U>[]
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;

type Query = Omit<Plain<Dataquery>, '_implementsDataqueryVariant' | 'datasource'> & { datasource: { type: string; uid: string } };

type PanelOf<Kind, Options, Custom> = Omit<Plain<Panel>, 'type' | 'targets' | 'options' | 'fieldConfig'> & {
  type: Kind;
  targets: Query[];
  options: Plain<Options>;
  fieldConfig: { defaults: Omit<Plain<FieldConfig>, 'custom'> & { custom?: Plain<Custom> }; overrides: [] };
};

// Grafana's Prometheus data source reads these beside `target`.
type Annotation = Omit<Plain<AnnotationQuery>, 'target'> & { target: Query; expr: string; step: string; titleFormat: string; textFormat: string };

export type Checked = Omit<Plain<Dashboard>, 'panels' | 'annotations' | 'templating'> & {
  panels: (Plain<RowPanel> | PanelOf<'stat', stat.Options, never> | PanelOf<'timeseries', timeseries.Options, timeseries.FieldConfig>
    | PanelOf<'heatmap', heatmap.Options, heatmap.FieldConfig>)[];
  annotations: { list: Annotation[] };
  templating: { list: Plain<VariableModel>[] };
};
